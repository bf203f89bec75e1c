"""The process that starts a server: flags, refusals before anything is started, requests, and how a server ends.

May import options, hooks and what the exchange lies on. Begin with arguments.py; `refusals` and `conflicts` say what
is refused, `given_flags` reads a command line without SGLang, `ending` tells who failed first.
"""
