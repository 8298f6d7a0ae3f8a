#!lua flags=allow-oom
-- Take over what others have not acknowledged. What was delivered too often goes to the dead letters.
-- KEYS: the stream, the dead letters; ARGV: group, consumer, least idle time, entries, most deliveries,
-- where to begin, what the channels of servers begin with
local lost = 0
-- A server whose connection has ended renews nothing any more: what it has need not wait for that.
for _, other in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1])[4] or {}) do
    local name = other[1]
    if name ~= ARGV[2] and redis.call('PUBSUB', 'SHARDNUMSUB', ARGV[7] .. name)[2] == 0 then
        for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], name)) do
            local id = entry[1]
            if not redis.call('XCLAIM', KEYS[1], ARGV[1], name, 0, id, 'IDLE', ARGV[3], 'JUSTID')[1] then
                lost = lost + 1
            end
        end
    end
end
local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[6], 'COUNT', ARGV[4])
local taken, dead = {}, 0
for _, entry in ipairs(reply[2]) do
    local id = entry[1]
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)
    local count = pending[1] and pending[1][4] or 1
    if count > tonumber(ARGV[5]) then
        redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'd', entry[2][2], 'entry', id)
        redis.call('XACK', KEYS[1], ARGV[1], id)
        redis.call('XDEL', KEYS[1], id)
        dead = dead + 1
    else
        taken[#taken + 1] = { id, entry[2][2], count }
    end
end
return { taken, dead, lost + #(reply[3] or {}), reply[1] }
