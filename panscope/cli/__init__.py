"""The command line: what each verb is given (`flags`), what it does (`actions`), how results look in a terminal."""
