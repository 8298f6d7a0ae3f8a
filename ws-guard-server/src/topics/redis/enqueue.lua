-- Store an entry of a queue, unless as many wait as may.
-- KEYS: the stream; the publication's key, if it has one
-- ARGV: data, most entries, milliseconds that a key is known
if KEYS[2] then
    local known = redis.call('GET', KEYS[2])
    if known then
        return { known, 1 }
    end
end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then
    return { '', 0 }
end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local id = redis.call('XADD', KEYS[1], '*', 'd', ARGV[1], 't', ms)
if KEYS[2] then
    redis.call('SET', KEYS[2], id, 'PX', ARGV[3])
end
-- Servers that follow the stream's channel ask for entries.
redis.call('SPUBLISH', KEYS[1], '')
return { id, 0 }
