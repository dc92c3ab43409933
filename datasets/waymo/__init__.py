"""The files of the Waymo Open Dataset, read without TensorFlow."""
