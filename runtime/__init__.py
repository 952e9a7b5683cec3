"""The process: backend, memory, files that are whole, errors, the command line, text."""
