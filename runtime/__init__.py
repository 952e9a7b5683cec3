"""The process: backend, memory, atomic files, errors, the command line, text."""
