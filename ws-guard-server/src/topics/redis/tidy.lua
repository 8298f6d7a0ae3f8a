#!lua flags=allow-oom
-- Remove consumers that are gone and of which nothing is pending.
-- KEYS: the stream; ARGV: group, consumer, idle time
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local of = {}
    for index = 1, #info, 2 do
        of[info[index]] = info[index + 1]
    end
    if of.name ~= ARGV[2] and of.pending == 0 and of.idle > tonumber(ARGV[3]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], of.name)
        removed = removed + 1
    end
end
return removed
