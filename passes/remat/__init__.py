"""Rematerialization: schedules that hold fewer bytes and run some steps again."""
