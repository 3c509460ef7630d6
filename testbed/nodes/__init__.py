"""Node and its roles, one file a role."""
