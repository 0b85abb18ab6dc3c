"""Components, one folder a plugin. A folder's `__init__` says what it offers; modules with torch in them load when built."""
