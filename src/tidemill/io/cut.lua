#!lua
-- A consistent cut while workers go on: from `begin` on, commit.lua keeps the former bytes of every key that it changes
-- for the first time, and `take` returns those where there are any. Nobody waits, and only one cut is taken at a time.
-- ARGV: step, token of the cut, its lifetime in ms, then what the step takes.
local prefix, step, token, lifetime = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call
local cut, kept = prefix .. 'cut', prefix .. 'cut:kept'
if step == 'begin' then
  local incarnation = call('GET', prefix .. 'incarnation')
  if not incarnation then
    return {'lost'}
  end
  if call('EXISTS', prefix .. 'filling') == 1 or call('EXISTS', cut) == 1 then
    return {'busy', math.max(0, call('PTTL', cut))}
  end
  call('DEL', kept)
  call('HSET', kept, '', '') -- it lives as long as the cut, and longer by what a commit may take
  call('PEXPIRE', kept, 2 * lifetime)
  call('SET', cut, token, 'PX', lifetime)
  local found = {}
  for _, name in ipairs(call('SMEMBERS', prefix .. 'partitions')) do
    local record = call('HMGET', prefix .. 'p:' .. name, 'applied', 'committed', 'watermark', 'lagging', 'fresh')
    found[#found + 1] = {
      name, record[1] or '', record[2] or '', record[3] or '', record[4] or '', record[5] or '',
      call('HGETALL', prefix .. 'o:' .. name),
    }
  end
  local declared = call('MGET', prefix .. 'config', prefix .. 'features')
  return {'begun', incarnation, call('SMEMBERS', prefix .. 'lineage'), declared[1] or '', declared[2] or '', found}
end
-- guard: cut
if call('GET', cut) ~= token then
  return {'interrupted'}
end
-- end guard
if step == 'end' then
  call('DEL', cut)
  call('UNLINK', kept)
  return {'ended'}
end
-- take: keys
call('PEXPIRE', cut, lifetime)
call('PEXPIRE', kept, 2 * lifetime)
local values = {'taken'}
if #ARGV > 3 then
  local former = call('HMGET', kept, unpack(ARGV, 4))
  local present = call('MGET', unpack(ARGV, 4))
  for place, value in ipairs(present) do
    if former[place] then -- '1' and the bytes, or '0': it was not there
      value = string.sub(former[place], 1, 1) == '1' and string.sub(former[place], 2)
    end
    values[place + 1] = value
  end
end
return values
