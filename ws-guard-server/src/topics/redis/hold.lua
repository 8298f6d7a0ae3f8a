#!lua flags=allow-oom
-- Say how long entries that are this consumer's have been idle: not at all, or so long that anyone
-- may take them. Returns those that are others' by now, and those that are gone.
-- KEYS: the stream; ARGV: group, consumer, idle time, entries
local taken, gone = {}, {}
for index = 4, #ARGV do
    local id = ARGV[index]
    if not redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1] then
        taken[#taken + 1] = id
    elseif not redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3], 'JUSTID')[1] then
        gone[#gone + 1] = id
    end
end
return { taken, gone }
