"""Steps of the schema, oldest first. A released step is never changed; a change of `tables.py` is a new one."""
