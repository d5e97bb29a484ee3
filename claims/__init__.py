"""What the papers say, measured again on a small scale, one file a chapter: python -m claims.duo variance"""
