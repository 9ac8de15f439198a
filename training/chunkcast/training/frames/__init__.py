"""Camera frames of demonstrations: rendered from what was recorded, kept compressed beside the table, read as
images.
"""
