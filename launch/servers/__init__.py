"""Servers that commands start: in this process, as a child, or forked from a process that has imported SGLang."""
