#!lua flags=allow-oom
-- Be done with an entry that is this consumer's. KEYS: the stream; ARGV: group, consumer, entry
if redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1] then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    redis.call('XDEL', KEYS[1], ARGV[3])
    return 1
end
return 0
