-- Unbind a key, if it is bound to this generation: another attempt may have it by now.
--
-- KEYS[1]  the key
-- ARGV[1]  the generation's id

local bound = redis.call('GET', KEYS[1])
if bound and cjson.decode(bound).id == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
