#!lua flags=allow-oom
-- A topic's latest entries, latest first, the time, and how far this server had read; a topic that is
-- not there is begun.
-- KEYS: the stream, how far servers have read; ARGV: most entries, milliseconds of the stream,
-- the server, this run of Redis
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = math.floor(us / 1000)
local found = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1])
if #found == 0 then
    redis.call('DEL', KEYS[1])
    redis.call('XADD', KEYS[1], string.format('%.0f-0', us), 'd', '', 't', ms, 'r', ARGV[4])
    found = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return { ms, found, redis.call('HGET', KEYS[2], ARGV[3]) or '' }
