"""The command line: thin modules that parse, call and print. One module a command group, each with `register`."""
