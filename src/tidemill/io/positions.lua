#!lua
-- The operator moves positions: owners are voided and unsent outputs dropped. ARGV: (partition, offset) and again.
for at = 1, #ARGV, 2 do
  local record = KEYS[1] .. 'p:' .. ARGV[at]
  redis.call('SADD', KEYS[1] .. 'partitions', ARGV[at])
  redis.call('HSET', record, 'applied', ARGV[at + 1], 'committed', ARGV[at + 1])
  redis.call('HDEL', record, 'owner', 'fresh', 'tried_at', 'tried')
  redis.call('DEL', KEYS[1] .. 'o:' .. ARGV[at])
end
return {'applied'}
