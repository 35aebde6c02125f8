"""What is trained: the suite file, its grid of coders, their recipes, wirings and names."""
