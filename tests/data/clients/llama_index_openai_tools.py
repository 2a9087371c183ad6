import sys

from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("CALLED get_weather", {"city": city})
    return "sunny"


model = OpenAILike(
    model="any",
    api_base=f"{sys.argv[1]}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    temperature=0,
)
tools = [FunctionTool.from_defaults(get_weather)]
print(model.predict_and_call(tools, "What is the weather in Paris?"))
