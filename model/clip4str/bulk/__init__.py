"""Bulk reading: millions of crops in folders, Parquet or object storage, on a Ray cluster, into Parquet."""
