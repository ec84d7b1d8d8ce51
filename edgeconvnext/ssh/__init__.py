"""A device that is reached with this machine's OpenSSH client: the connection, and a kit run over it."""
