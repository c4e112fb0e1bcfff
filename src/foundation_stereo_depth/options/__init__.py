"""Every option of every command: a field of a dataclass is the flag, the default, the unit and the help."""
