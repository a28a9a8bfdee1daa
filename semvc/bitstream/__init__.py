"""Reading and writing the `.svc` container: standard library only."""
