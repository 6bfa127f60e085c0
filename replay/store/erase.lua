-- Take events out of a log, but not its last one: the next is appended after that.
--
-- KEYS[1]  the stream
-- ARGV     ids

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
for _, id in ipairs(ARGV) do
  if last and id ~= last[1] then
    redis.call('XDEL', KEYS[1], id)
  end
end
