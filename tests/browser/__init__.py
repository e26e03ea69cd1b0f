"""The report page in headless Chromium: `make browser`, a tier of its own."""
