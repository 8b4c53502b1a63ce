"""Objects below s3://BUCKET/PREFIX: listed, read, kept, written. boto3 is imported when one is opened, not before."""

from graft.s3.place import Place, parse_place
from graft.s3.store import ProgressBar, S3Store, fetch_file
from graft.s3.versions import Version

__all__ = ["Place", "ProgressBar", "S3Store", "Version", "fetch_file", "parse_place"]
