-- Holds a new connection until the named backend has a usable server, 30 s at most.
-- Runs in `tcp-request content` rules; asking every 20 ms costs less than a client's reconnect.
local STEP_MS, LIMIT_MS = 20, 30000

core.register_action("wait_primary", { "tcp-req" }, function(txn, backend_name)
  local backend, waited = core.backends[backend_name], 0
  while waited < LIMIT_MS do
    for _, server in pairs(backend.servers) do
      local status = server:get_stats()["status"]
      if status and status:sub(1, 2) == "UP" then
        return
      end
    end
    core.msleep(STEP_MS)
    waited = waited + STEP_MS
  end
  return act.DENY
end, 1)
