"""A run without the hub: what it needs, fetching it, the folder that holds it, opening all of it once."""
