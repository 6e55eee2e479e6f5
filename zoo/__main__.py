"""``python -m zoo`` is the command ``zoo``."""

from zoo.commands.main import app

app(prog_name="zoo")
