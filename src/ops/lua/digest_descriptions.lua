-- Returns a digest of all descriptions of jobs; another one if any of them has changed. The descriptions of 1,000 jobs
-- have about half a megabyte.
-- KEYS  1 descriptions (hash, job to JSON)
return redis.sha1hex(table.concat(redis.call('HGETALL', KEYS[1]), '\0'))
