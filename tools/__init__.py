"""Programs for those who work on lamina."""
