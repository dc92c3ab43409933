"""Recordings of messages: rosbag2 folders, sqlite3 and MCAP files; read, written and replayed."""
