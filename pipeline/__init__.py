"""Floor 5, the conductor: the ``selfalign`` command, the schema of ``params.yaml``, machine settings."""
