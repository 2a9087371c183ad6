import sys

import dspy


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("CALLED get_weather", city, flush=True)
    return "sunny, 20 degrees"


model = dspy.LM("openai/any", api_base=f"{sys.argv[1]}/v1", api_key="none", temperature=0.0)
dspy.configure(lm=model)
dspy.ReAct("question -> answer", tools=[get_weather], max_iters=1)(
    question="What is the weather in Paris?"
)
