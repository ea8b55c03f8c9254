"""Pictures and videos: finding, reading and writing of files."""
