"""MPTCP seen from outside: socket statistics by inet_diag."""
