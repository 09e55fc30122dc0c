"""Reports: JSON that calibrate or evaluate gave → one page of HTML that needs no network and no script.

Pure: values in, text out.
"""
