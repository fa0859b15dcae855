"""The command lines of jobs/: options to a run, errors as one line, a short report at the end."""
