"""Every figure of the lessons: functions that take data and return a matplotlib figure, a file a subject."""
