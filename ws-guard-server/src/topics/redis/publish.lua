-- Store a publication as its topic's next, push it to servers that follow the stream's channel, and let
-- go of those that are over its bounds.
-- KEYS: the stream; the publication's key, if it has one
-- ARGV: data, most entries, milliseconds of history, of the stream, this run of Redis
if KEYS[2] then
    local known = redis.call('GET', KEYS[2])
    if known then
        return { known, 1 }
    end
end
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = math.floor(us / 1000)
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local epoch, offset = us, 0
if last then
    local dash = string.find(last[1], '-', 1, true)
    epoch = tonumber(string.sub(last[1], 1, dash - 1))
    offset = tonumber(string.sub(last[1], dash + 1))
    -- Another run may have lost the latest entries: what is stored from now on differs from them.
    if last[2][6] ~= ARGV[5] then
        epoch = math.max(us, epoch + 1)
    end
else
    redis.call('DEL', KEYS[1])
end
local id = string.format('%.0f-%.0f', epoch, offset + 1)
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[2], id, 'd', ARGV[1], 't', ms, 'r', ARGV[5])
for _ = 1, 16 do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 2)
    if #oldest < 2 or tonumber(oldest[1][2][4]) >= ms - ARGV[3] then
        break
    end
    redis.call('XTRIM', KEYS[1], 'MINID', oldest[2][1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if KEYS[2] then
    redis.call('SET', KEYS[2], id, 'PX', ARGV[3])
end
-- A server takes it at once if it has the entry before; as `pushes.rs` reads it.
local before = last and last[1] or ''
redis.call('SPUBLISH', KEYS[1], before .. ' ' .. id .. ' ' .. string.format('%.0f', ms) .. ' ' .. ARGV[1])
return { id, 0 }
