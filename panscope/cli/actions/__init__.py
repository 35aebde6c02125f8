"""What each verb does with its flags: `run(flags, console)` gives the exit status."""
