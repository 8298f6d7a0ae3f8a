-- The cluster that a user belongs to: the same hash as `ws-guard route`.
--
-- Jump consistent hash (Lamping and Veach, 2014) of the first 8 bytes of SHA-1 over the user's name, as
-- a big-endian number of 64 bits, which LuaJIT has as `uint64_t`.
local ffi = require "ffi"

local M = {}

local MULTIPLIER = 2862933555777941757ULL
local SHIFT = 2 ^ 31
local HALF = 2 ^ 33

local uint64 = ffi.typeof("uint64_t")

-- The number of a user's cluster, from 0.
function M.cluster_of(user, clusters)
    local digest = ngx.sha1_bin(user)
    local key = uint64(0)
    for index = 1, 8 do
        key = key * 256 + digest:byte(index)
    end
    local last, next = 0, 0
    while next < clusters do
        last = next
        key = key * MULTIPLIER + 1
        next = math.floor((last + 1) * (SHIFT / (tonumber(key / uint64(HALF)) + 1)))
    end
    return last
end

return M
