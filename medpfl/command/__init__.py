"""The command line: what it asks for, what is wrong with it, and the jobs it starts."""
