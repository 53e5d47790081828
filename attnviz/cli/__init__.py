"""The command line: parse, call, write. One file a command; no arithmetic here."""
