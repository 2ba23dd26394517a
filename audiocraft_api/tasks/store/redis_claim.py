"""The Lua script of `claim`: fair queueing over the keys that `redis_scripts` describes. Executes nothing."""

CLAIM = """
local lease, lease_seconds, wanted, max_attempts, code, message =
  ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local function num_attempts(id) return tonumber(field(id, 'attempts') or '0') end

-- What is leased now: how many tasks of each owner, and which tasks to this worker.
local worker, running, num_leased = string.match(lease, '^.*/'), {}, {}
for _, id in ipairs(redis.call('ZRANGE', key('processing'), 0, -1)) do
  if not is_claimable(id) then
    num_leased[owner_of(id)] = (num_leased[owner_of(id)] or 0) + 1
    if string.sub(field(id, 'lease') or '', 1, #worker) == worker then
      -- that task is in its extra attempt and must run alone
      if num_attempts(id) > max_attempts then return {} end
      running[#running + 1] = id
    end
  end
end

-- Try to lease a claimable task. Return the task, {} when the worker gets no task now, nil when the task became final.
local function claim(id)
  local attempts = num_attempts(id)
  local is_extra = attempts == max_attempts and field(id, 'in_company') == '1'
  if is_cancel_requested(id) then
    finish(id, 'canceled')
  elseif is_extra and #running > 0 then
    return {}  -- it must run alone: wait until the worker's other tasks have finished
  elseif attempts >= max_attempts and not is_extra then
    finish(id, 'failed', 'error', (string.gsub(message, '{attempts}', attempts)), 'error_code', code)
  else
    for _, other in ipairs(running) do redis.call('HSET', task(other), 'in_company', 1) end
    redis.call('HSET', task(id), 'in_company', (is_extra or #running > 0) and 1 or 0)
    redis.call('ZREM', key('queued'), id)
    redis.call('ZADD', key('processing'), field(id, 'number'), id)
    local turn = redis.call('INCR', key('turn'))
    redis.call('HSET', key('turns'), owner_of(id), turn)
    redis.call('ZADD', key('waiting'), 'XX', turn, owner_of(id))
    change(id, 'state', 'processing', 'attempts', attempts + 1, 'lease', lease,
      'held_until', stamp(now + lease_seconds), 'hold_seconds', stamp(lease_seconds), 'started', stamp(now),
      'num_frames_done', 0, 'num_frames_total', 0)
    return redis.call('HGETALL', task(id))
  end
end
if wanted ~= '' then
  return is_unfinished(wanted) and is_claimable(wanted) and claim(wanted) or {}
end

-- Try an owner's tasks, oldest first. Return as `claim`, nil when none is claimable.
local function claim_of(owner)
  local last = '-inf'
  while true do  -- in blocks: the queue may be long, while the leased tasks at its start are few
    local block = redis.call('ZRANGEBYSCORE', key('unfinished:' .. owner), last, '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
    if #block == 0 then return nil end
    for index = 1, #block, 2 do
      if not is_unfinished(block[index]) then
        remove_from_owner(owner, block[index])  -- finished by an older release
      elseif is_claimable(block[index]) then
        local claimed = claim(block[index])
        if claimed then return claimed end
      end
      last = '(' .. block[index + 1]
    end
  end
end

-- First the owners without a leased task, least recently served first; then the others, by their number of leases.
index_new_tasks()
local busy, first = {}, 0
while true do
  local block = redis.call('ZRANGE', key('waiting'), first, first + 99, 'WITHSCORES')
  if #block == 0 then break end
  for index = 1, #block, 2 do
    local owner = block[index]
    if num_leased[owner] then
      busy[#busy + 1] = {owner, num_leased[owner], #busy}
    else
      local claimed = claim_of(owner)
      if claimed then return claimed end
    end
    -- an owner that was just removed shifts the others down by one
    if redis.call('ZSCORE', key('waiting'), owner) then first = first + 1 end
  end
end
table.sort(busy, function(one, other)
  if one[2] ~= other[2] then return one[2] < other[2] end
  return one[3] < other[3]
end)
for _, owner in ipairs(busy) do
  local claimed = claim_of(owner[1])
  if claimed then return claimed end
end
return {}
"""
