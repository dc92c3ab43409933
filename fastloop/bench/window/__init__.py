"""`fastloop bench window`: what a tick costs by how many frames a policy sees."""
