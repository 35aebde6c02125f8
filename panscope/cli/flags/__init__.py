"""What each verb is given on the command line. Nothing heavy is imported here, so that --help comes at once."""
