"""The application: command line, settings, task families, trainer, scores. Uses what a user could."""
