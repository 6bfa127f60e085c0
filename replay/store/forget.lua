-- Take generations off the list of recent ones, unless they were listed anew meanwhile; returns the ids of those taken.
--
-- KEYS[1]  the sorted set
-- ARGV     created_ms, id, created_ms, id, …

local taken = {}
for i = 1, #ARGV, 2 do
  if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i + 1]) or -1) == tonumber(ARGV[i]) then
    redis.call('ZREM', KEYS[1], ARGV[i + 1])
    taken[#taken + 1] = ARGV[i + 1]
  end
end
return taken
