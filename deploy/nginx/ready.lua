-- Servers that are ready, for balancer_by_lua. nginx alone goes by what its clients get: a server that
-- is stopped, or whose machine is gone, takes connections or says nothing, and holds up each client that
-- is sent there.
--
--   init_by_lua_block        { ready = require "ready" }
--   init_worker_by_lua_block { ready.watch { { "10.0.0.10", 8080, 9090 }, { "10.0.0.11", 8080, 9090 } } }
--   upstream fleet { server 0.0.0.1; balancer_by_lua_block { ready.pick() } }
--
-- A server is its address, its port for clients, and the one of its --metrics-listen, where each worker
-- asks for /readyz.
local balancer = require "ngx.balancer"

local M = {}

-- Seconds between two questions, and milliseconds for an answer: more than a busy server takes.
local EVERY = 0.5
local PATIENCE = 1000

local servers, turn = {}, 0

local function is_ready(server)
    local socket = ngx.socket.tcp()
    socket:settimeout(PATIENCE)
    local line
    if socket:connect(server.address, server.asked) then
        if socket:send("GET /readyz HTTP/1.0\r\n\r\n") then
            line = socket:receive("*l")
        end
        socket:close()
    end
    return line ~= nil and line:find("^HTTP/1%.%d 200") ~= nil
end

local function keep_asking(premature, server)
    if premature then
        return
    end
    while not ngx.worker.exiting() do
        server.ready = is_ready(server)
        ngx.sleep(EVERY)
    end
end

-- Ask these servers from now on, in each worker.
function M.watch(list)
    for index, entry in ipairs(list) do
        local server = { address = entry[1], port = entry[2], asked = entry[3], ready = true }
        servers[index] = server
        assert(ngx.timer.at(0, keep_asking, server))
    end
end

-- Send a client to the next server that is ready; to any of them if none is. One that refuses is not
-- ready until it says otherwise, and another one is tried.
function M.pick()
    local before = ngx.ctx.server
    if before then
        before.ready = false
    elseif #servers > 1 then
        assert(balancer.set_more_tries(#servers - 1))
    end
    for _ = 1, #servers do
        turn = turn % #servers + 1
        if servers[turn].ready then
            break
        end
    end
    if not servers[turn].ready then
        turn = turn % #servers + 1
    end
    ngx.ctx.server = servers[turn]
    assert(balancer.set_current_peer(servers[turn].address, servers[turn].port))
end

return M
